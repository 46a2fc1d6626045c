import os

import pytest

import alrpc
from alrpc.pipeline.placement import Placement, choose_cores, choose_devices, describe_transport, split_components


def place(stage=1, index=0, neighbours=1, gpus=0, shares=False) -> Placement:
    return Placement(stage, f"host-{stage}", 1, index, neighbours, gpus, "", shares)


def test_an_even_split_is_as_even_as_can_be():
    assert split_components(4, 2, None) == [[1, 2], [3, 4]]
    assert split_components(7, 3, None) == [[1, 2, 3], [4, 5], [6, 7]]
    assert split_components(5, 5, None) == [[1], [2], [3], [4], [5]]


def test_a_given_split_is_taken():
    assert split_components(4, 3, [1, 2, 1]) == [[1], [2, 3], [4]]


def test_every_stage_gets_a_gpu_if_there_are_enough():
    places = [place(1, index=0, neighbours=2, gpus=2), place(2, index=1, neighbours=2, gpus=2), place(3, gpus=1)]
    assert choose_devices(places, "auto") == (["cuda:0", "cuda:1", "cuda:0"], "nccl")
    assert choose_devices(places, "cpu") == (["cpu"] * 3, "gloo")


def test_stages_that_share_a_gpu_exchange_packets_through_the_host_unless_every_nccl_can_do_it():
    for shares, transport in ((False, "gloo"), (True, "nccl")):
        places = [place(stage + 1, index=stage, neighbours=3, gpus=2, shares=shares) for stage in range(3)]
        assert choose_devices(places, "auto") == (["cuda:0", "cuda:1", "cuda:0"], transport)
    assert choose_devices([*places, place(4, gpus=1)], "auto")[1] == "gloo"
    assert choose_devices([*places, place(4, gpus=0)], "auto") == (["cpu"] * 4, "gloo")


def test_how_packets_travel_is_told_where_it_is_not_a_matter_of_course():
    sharing = [place(stage + 1, index=stage, neighbours=2, gpus=1) for stage in range(2)]
    assert describe_transport(sharing, ["cpu", "cpu"], "gloo") is None
    assert "stages share a GPU, which NCCL allows from 2.30 on" in describe_transport(sharing, ["cuda:0", "cuda:0"], "gloo")
    assert describe_transport(sharing, ["cuda:0", "cuda:0"], "nccl") == "NCCL, stages share a GPU"
    assert describe_transport([place(gpus=1)], ["cuda:0"], "nccl") == "NCCL"


def test_a_gpu_that_is_not_there_is_named_with_stage_and_host():
    with pytest.raises(alrpc.UserError, match="stage 2 finds no GPU on host host-2"):
        choose_devices([place(1, gpus=1), place(2, gpus=0)], "cuda")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this platform does not pin processes")
def test_cores_are_divided_where_stages_fill_the_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 4, 5})
    two = [place(stage + 1, index=stage, neighbours=2) for stage in range(2)]
    assert [choose_cores(each, 2, "auto") for each in two] == [[0, 1], [4, 5]]
    assert [choose_cores(each, 1, "auto") for each in two] == [None, None]
    assert [choose_cores(each, 1, "always") for each in two] == [[0], [1]]
    assert [choose_cores(each, 2, "never") for each in two] == [None, None]
