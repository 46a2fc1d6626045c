"""Mistakes that a type checker is to find; beside each one, the code of mypy's error and a part of its message."""

from torch import nn

import alrpc
from alrpc.events import Evaluation

dataset = alrpc.load_data("digits")
network = alrpc.associate([nn.Linear(2, 2)], dataset.sample, dataset.target)


def heard(event: Evaluation) -> None:
    print(event.exits)


alrpc.trian(network, dataset)  # attr-defined: no attribute "trian"
alrpc.load_data(1)  # arg-type: "int"; expected "str"
alrpc.associate([nn.Linear(2, 2)], dataset.sample, 10)  # arg-type: expected "Classes | Labels | Values"
alrpc.associate([nn.Linear(2, 2)], dataset.sample, alrpc.Classes("10"))  # arg-type: expected "int"
alrpc.associate([nn.Linear(2, 2)], dataset.sample, dataset.target, poling="mean")  # call-arg: did you mean "pooling"?
alrpc.train(network, dataset, epoch=1)  # call-arg: did you mean "epochs"?
alrpc.train(network, dataset, lr="fast")  # arg-type: "lr" to "train" has incompatible type "str"
alrpc.train(network, dataset, device="gpu")  # arg-type: expected "Literal['auto', 'cpu', 'cuda']"
alrpc.train(network, network)  # arg-type: expected "Dataset"
alrpc.train(network, dataset, callbacks=heard)  # arg-type: "callbacks" to "train" has incompatible type
alrpc.train(network, dataset, callbacks=[heard])  # list-item: expected "Callable[[Event], object]"
alrpc.launch_pipeline("digits-mlp", stages=4)  # arg-type: expected "Config"
alrpc.load_config().train.epoch  # attr-defined: maybe "epochs"?
alrpc.load_run("run").predict("image")  # arg-type: expected "Tensor | dict[str, Tensor]"
accuracy: float = alrpc.train(network, dataset)  # assignment: expression has type "list[float]"
