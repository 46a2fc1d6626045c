"""A stage's memory is bounded by its window, however long the run and however slow a later stage."""

from conftest import read_summary

PACKET = 4 << 20  # bytes
SLOW = """
import time
import torch
from torch import nn
import alrpc

class Slow(nn.Module):
    def forward(self, x):
        time.sleep(0.02)
        return x

class First(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :4].clone()

class Repeated(alrpc.Split):
    def batch(self, indices):
        return {"x": torch.zeros(len(indices), (4 << 20) // 4 // 8)}, self.labels[indices]

def build():
    return [nn.Identity(), nn.Identity(), nn.Sequential(Slow(), First())]

def data(micro_batches):
    split = Repeated(torch.zeros(8 * micro_batches, 1), torch.arange(8 * micro_batches) % 2)
    return alrpc.Dataset(split, alrpc.Split(torch.zeros(1, (4 << 20) // 4 // 8), torch.zeros(1, dtype=torch.int64)), alrpc.Classes(2))

def short():
    return data(10)

def long():
    return data(150)
"""


def test_peak_memory_grows_neither_with_the_epoch_nor_with_a_later_stages_slowness(commands):
    (commands.folder / "slow.py").write_text(SLOW)
    peaks = {}
    for name in ("short", "long"):
        options = (
            "model.name=slow:build",
            f"data.name=slow:{name}",
            "data.batch_size=8",
            "train.epochs=1",
            "objective.bridge_widths=[]",
        )
        fields = [part for field in (*options, "objective.target_width=4") for part in ("--set", field)]
        done = commands.alrpc("launch", "--stages", "3", "--out", name, *fields)
        assert done.returncode == 0, done.stderr
        summary = read_summary(commands.folder / name)
        peaks[name] = [stage["peak_memory_bytes"] for stage in summary["per_stage"]]
    first = summary["per_stage"][0]
    assert first["seconds_waiting_to_send"] > first["seconds_computing"]  # it was held back
    # 140 more packets of 4 MiB: a stage that kept them would hold 560 MiB more
    for short, long in zip(peaks["short"], peaks["long"], strict=True):
        assert long - short < 16 * PACKET  # under load ten packets may not fill the window
