"""The sequential engine against a plain loop that shares none of its code: the same bits."""

import torch

import alrpc
from alrpc.config import load_config
from alrpc.data import read_data
from alrpc.data.dataset import shuffled
from alrpc.network import build_network, resolve
from alrpc.runtime.run import run_sequentially
from alrpc.system import derive_seed


def plain_loop(config) -> alrpc.Network:
    """Associated learning of a network, as one would write it down: Adam, a constant rate, one device."""
    dataset = read_data(config.data, config.train)
    network = build_network(config, dataset.sample, dataset.target).train()
    optimizers = [torch.optim.Adam(component.parameters(), lr=config.train.lr, fused=True) for component in network.components]
    seed, step = config.train.seed, 0
    for epoch in range(config.train.epochs):
        for indices in shuffled(len(dataset.train), seed, epoch).split(config.data.batch_size):
            s, t = dataset.train.inputs[indices], torch.eye(dataset.target.count)[dataset.train.labels[indices]]
            for number, (component, optimizer) in enumerate(zip(network.components, optimizers, strict=True), 1):
                torch.manual_seed(derive_seed(seed, "component", number, "step", step))
                s = component.block(s)
                bridged = component.bridge(s)
                encoded = component.encoder(t)
                decoded = component.decoder(encoded)
                loss = torch.nn.functional.mse_loss(bridged, encoded.detach())
                loss = loss + torch.nn.functional.mse_loss(decoded, t)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                s, t = s.detach(), encoded.detach()
            step += 1
    return network


def test_the_engine_computes_the_bits_of_a_plain_loop(tmp_path):
    fields = [
        "model.name=own_blocks:build",
        "train.epochs=2",
        "train.schedule=constant",
        "train.target_lr=2e-3",
        "train.lr=2e-3",
    ]
    config, _ = resolve(load_config(None, fields))
    summary, _ = run_sequentially(config, "run", tmp_path / "run", quiet=True)
    torch.set_num_threads(1)
    assert summary["parameters_sha256"] == plain_loop(config).digest()
