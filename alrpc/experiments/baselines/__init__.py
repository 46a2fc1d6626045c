"""Back-propagation on the same blocks, through PyTorch's own engines.

method        engine                                                        processes  working at one time
bp            autograd                                                      1          the process
layer-placed  torch.distributed.pipelining, GPipe with one micro-batch      N          one (the thesis' own BP)
gpipe         torch.distributed.pipelining, ScheduleGPipe                   N          all but the bubble
1f1b          torch.distributed.pipelining, Schedule1F1B                    N          all but the bubble
ddp           torch.nn.parallel.DistributedDataParallel                     N          all, then they exchange gradients
"""

METHODS = ("bp", "layer-placed", "gpipe", "1f1b", "ddp")
