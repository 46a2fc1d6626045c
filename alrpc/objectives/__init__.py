"""Objectives: what a component learns, with which modules and losses. Each objective has its own file."""

OBJECTIVES = {
    "associated": "alrpc.objectives.associated:AssociatedLearning",
    "classifier": "alrpc.objectives.classifier:Classifier",
    "contrastive": "alrpc.objectives.contrastive:Contrastive",
    "deinfo": "alrpc.objectives.deinfo:Deinfo",
    "forward_forward": "alrpc.objectives.forward_forward:ForwardForward",
    "synthetic": "alrpc.objectives.synthetic:SyntheticGradients",
    "target_propagation": "alrpc.objectives.target_propagation:TargetPropagation",
}
