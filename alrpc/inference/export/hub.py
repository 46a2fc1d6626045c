"""hub.py of an export: its plain module with the mixin of Hugging Face's hub, in a file of its own, since only who publishes needs it.

https://huggingface.co/docs/huggingface_hub/package_reference/mixins
"""

from __future__ import annotations

HUB = "hub.py"
TAGS = ("model_hub_mixin", "pytorch_model_hub_mixin")
"""By which the hub finds the models that are loaded so."""
MODULE = '''"""The network of model.py for Hugging Face's hub. It needs huggingface_hub:

    network = Network.from_pretrained(DIRECTORY)  # or NAME, of a repository of the hub
    network.save_pretrained(DIRECTORY)
    network.push_to_hub(NAME)

What is saved or pushed are the files of this directory, but for examples.safetensors, with the parameters that the network has then.
"""

from pathlib import Path

from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from model import Network as Plain
from safetensors.torch import load_file

CARD, PARAMETERS = "README.md", "model.safetensors"
FILES = {
    path.name: path.read_text(encoding="utf-8")
    for path in Path(__file__).parent.iterdir()
    if path.suffix in (".json", ".md", ".py")
}


class Network(PyTorchModelHubMixin, Plain):
    @classmethod
    def _from_pretrained(cls, *, model_id, map_location="cpu", **where):
        if Path(model_id).is_dir():
            parameters = Path(model_id) / PARAMETERS
        else:
            parameters = hf_hub_download(model_id, PARAMETERS, **where)
        return cls(load_file(parameters, device=str(map_location)))

    def _save_pretrained(self, save_directory):
        super()._save_pretrained(save_directory)
        for name, text in FILES.items():
            if name != CARD:
                (save_directory / name).write_text(text, encoding="utf-8")

    def generate_model_card(self, *arguments, **options):
        """README.md of this directory; the mixin asks for it where there is none yet."""
        return ModelCard(FILES[CARD])
'''
