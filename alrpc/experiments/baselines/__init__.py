"""Back-propagation on the same blocks, through PyTorch's own engines, and PipeDream over this engine's links.

method        engine                                                        processes  working at one time
bp            autograd                                                      1          the process
layer-placed  torch.distributed.pipelining, GPipe with one micro-batch      N          one (the thesis' own BP)
gpipe         torch.distributed.pipelining, ScheduleGPipe                   N          all but the bubble
1f1b          torch.distributed.pipelining, Schedule1F1B                    N          all but the bubble
pipedream     this project's links, a version of the parameters for each  N          all
              micro-batch in flight
pipedream-2bw the same, two versions                                        N          all
ddp           torch.nn.parallel.DistributedDataParallel                     N          all, then they exchange gradients
"""

METHODS = {
    "bp": "back-propagation in one process",
    "layer-placed": "back-propagation with the layers in N processes, of which one works at a time, as in the thesis",
    "gpipe": "back-propagation in N processes, by GPipe's schedule of torch.distributed.pipelining",
    "1f1b": "back-propagation in N processes, by the schedule 1F1B of torch.distributed.pipelining",
    "pipedream": "back-propagation in N processes, which do not wait for each other: PipeDream, with stashed parameters",
    "pipedream-2bw": "the same with one update's delay for all and two versions of the parameters: PipeDream-2BW",
    "ddp": "back-propagation with the whole network in each of N processes (DistributedDataParallel)",
}
"""The baselines, and what each one is."""
ASYNCHRONOUS = ("pipedream", "pipedream-2bw")
"""Those whose gradients are of earlier parameters than those that they change."""
