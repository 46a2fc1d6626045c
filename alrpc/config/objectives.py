"""The section `objective` of a configuration: its name decides which other fields it has."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, PositiveInt, Tag

from alrpc.config.section import Section, name_or_own

Activation = Literal["sigmoid", "tanh", "relu", "gelu", "none"]
Pooling = Literal["auto", "flatten", "mean", "grid"]


class Associated(Section):
    """Associated learning; see `alrpc.associate`. For vgg, resnet, lstm and transformer the defaults are the thesis' values."""

    name: Literal["associated"] = "associated"
    """associated, classifier, contrastive, deinfo, forward_forward, synthetic, target_propagation; or package.module:Class for
    an objective of your own, whose constructor's arguments are the other fields."""
    target_width: PositiveInt = 128
    """Width of the target representations t_1 … t_L."""
    bridge_widths: list[PositiveInt] = Field([256])
    """Hidden widths of each bridge; its last layer, to target_width, is added."""
    activation: Activation = "tanh"
    """Activation after each layer of a bridge or target encoder."""
    decoder_activation: Activation = "none"
    """Activation after each target decoder; the first decoder of labels or of a regression never has one."""
    pooling: Pooling = "auto"
    """How a bridge reduces a block's output to a vector; auto keeps vectors, averages over tokens, and pools images to 4 x 4."""
    associated_loss: Literal["mse", "smooth_l1"] = "mse"
    """Loss between the bridge's output and the target representation."""
    autoencoder_loss: Literal["mse", "cross_entropy"] = "mse"
    """Loss between the decoded and the original target; cross_entropy applies only to the first component of a classification.
    With several labels a sample that component always has the binary one."""


class Head(Section):
    """What classifies a block's output."""

    name: str
    head: Literal["auto", "linear", "mlp", "conv", "augmented"] = "auto"
    """What classifies a block's output: linear: a pool and one linear layer; mlp: a pool and hidden layers; conv, for images: 3 × 3
    convolutions with batch norm and ReLU that halve the image, a pool and one linear layer; augmented: fresh copies of the next
    blocks, a pool and one linear layer (AugLocal, Ma et al., 2024). auto: conv for images, else linear."""
    width: PositiveInt | None = None
    """Hidden width of an mlp head, channels of a conv head; null for as many as the block gives, but at least 64 for conv."""
    layers: PositiveInt = 2
    """Hidden layers of an mlp head, convolutions of a conv head, blocks that an augmented head copies."""
    pooling: Pooling = "auto"
    """How one vector is made of a block's output for a linear or mlp head: as for the bridges of associated learning, but auto
    averages over pixels."""


class Classifier(Head):
    """A classifier on every block, which learns by cross entropy: decoupled greedy learning (Belilovsky et al., 2020)."""

    name: Literal["classifier"]
    loss: Annotated[str, *name_or_own("cross_entropy")] = "cross_entropy"
    """Loss of a head. A function of your own is called with the scores, (N, classes) float32, and the labels, (N,), or, of several
    a sample, (N, count) float32, and gives a scalar; back-propagation beside it keeps the cross entropy."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over all classes in the cross entropy; of several labels each is drawn so far towards
    a half."""
    ensemble: bool = False
    """Whether exit l is the mean of the log-probabilities of heads 1 … l, instead of head l alone."""
    similarity: float = Field(0.0, ge=0, lt=1)
    """Share of the loss that compares the similarities of samples by their features with those by their classes (predsim, Nøkland &
    Eidnes, 2019: 0.99)."""
    transport: float = Field(0.0, ge=0)
    """Weight of the mean square of what each residual branch of a block adds (TRGL, Karkar et al., 2023)."""
    reconstruction: float = Field(0.0, ge=0)
    """Weight of the mean squared error of the network's input as rebuilt from the output of a block, of all but the last, so that a
    block keeps what later ones may need (InfoPro, Wang et al., 2021). The input then travels with the activations."""


class Contrastive(Head):
    """Supervised contrastive learning on every block, whose output a classifier reads without changing what the block learns:
    SCPL (arXiv 2602.00062), the classifiers as in DASCPL."""

    name: Literal["contrastive"]
    temperature: float = Field(0.1, gt=0)
    """What the cosines of two samples are divided by."""
    projector_widths: list[PositiveInt] = Field([512, 1024])
    """Widths of the linear layers, with ReLU between them, that map a block's pooled output to the vectors that are compared; []
    compares the pooled outputs themselves, as SCPL does for texts."""
    pooling: Pooling = "auto"
    """How one vector is made of a block's output, for the projector and for a linear or mlp head: auto averages over tokens or
    pixels, flatten is SCPL's for images."""
    tau_plus: float = Field(0.0, ge=0, lt=1)
    """Share of a sample's negatives that is taken to be of its own class, which the sum over negatives is corrected for
    (debiased estimator, Chuang et al., 2020); 0 for no correction."""
    head: Literal["auto", "linear", "mlp", "conv", "augmented"] = "linear"
    """What classifies a block's output, without gradient into the block, with the learning rate target_lr; as of objective
    classifier."""


class Deinfo(Section):
    """DeInfoReg on every block (arXiv 2506.18193): samples correlate as their labels do, the numbers of a projection vary, each by
    itself, and classify. The loss is the sum of four terms, each times its weight."""

    name: Literal["deinfo"]
    projector_widths: list[PositiveInt] = Field([2048, 2048, 2048])
    """Widths of the linear layers, with batch norm and ReLU between them, that map a block's pooled output to the projection; []
    for the pooled output itself, as DeInfoReg does for texts."""
    pooling: Pooling = "auto"
    """How the projector makes one vector of a block's output: auto averages over tokens or pixels, flatten is DeInfoReg's for
    images."""
    invariance: float = Field(1.0, ge=0)
    """Weight of the squared differences between the samples' correlations and their labels'."""
    covariance: float = Field(1.0, ge=0)
    """Weight of the squared covariances of different numbers of the projection."""
    variance: float = Field(1.0, ge=0)
    """Weight of what the numbers' standard deviations lack to 1."""
    classifier: float = Field(0.001, ge=0)
    """Weight of the cross entropy of the classifier of the projection, which is also the exit."""
    detach: bool = False
    """Whether the classifier leaves the projection as it is: its gradient trains the classifier alone."""


class ForwardForward(Head):
    """Forward-forward on every block (Hinton, 2022): inputs that bear their true label are told from inputs that bear a wrong one.

    Component 1 writes the labels into the first numbers of the input, so that the input is no text, and packets hold three rows a
    sample in training."""

    name: Literal["forward_forward"]
    goodness: Literal["sum", "mean"] = "sum"
    """What a block makes high for true and low for wrong labels: the sum or the mean of its squared activations. The sum of a large
    image drives the logistic function to its ends; the mean does not."""
    threshold: float | None = None
    """The goodness that is as likely of a true as of a wrong label; null for the numbers in an activation, or 1 for the mean."""
    peer: float = Field(0.03, ge=0)
    """Weight of the loss that makes the units of a block equally active; 0 for none."""
    head: Literal["auto", "linear", "mlp", "conv", "augmented"] = "linear"
    """What classifies a block's output, without gradient into the block, with the learning rate target_lr; as of objective
    classifier."""
    pooling: Pooling = "flatten"
    """How one vector is made of a block's output for a linear or mlp head; auto and mean average over pixels, which tell the classes
    apart less well than an image's whole activation does."""


class Synthetic(Head):
    """Synthetic gradients: every block but the last learns at once from a prediction of its gradient, and the prediction from the
    gradient that the next block sends back (Jaderberg et al., 2017; Czarnecki et al., 2017)."""

    name: Literal["synthetic"]
    synthesiser_width: PositiveInt = 128
    """Channels, or hidden width, of what predicts a gradient: three 5 × 5 convolutions for images, else three linear layers."""
    label: bool = True
    """Whether the prediction of a gradient is given the label too."""
    delay: PositiveInt = 2
    """Micro-batches after which a block hears of its gradient. From 2 on, neighbouring stages work at the same time; each keeps
    the outputs of so many micro-batches."""
    head: Literal["auto", "linear", "mlp", "conv", "augmented"] = "linear"
    """What classifies a block's output: the network's own head on the last block; on the others an exit without gradient into the
    block, with the learning rate target_lr. As of objective classifier."""


class TargetPropagation(Head):
    """Difference target propagation: the last block learns from the true loss, every other one from a target for its output, which
    the next block's approximate inverse makes of that block's own target (Lee et al., 2015)."""

    name: Literal["target_propagation"]
    step: float = Field(0.1, gt=0)
    """How far the last block's target lies from what it was given, in gradients of a sample's loss."""
    noise: float = Field(0.1, ge=0)
    """Standard deviation of the noise on the inputs that inverses learn to restore."""
    inverse_width: PositiveInt = 128
    """Channels, or hidden width, of an inverse: two 3 × 3 convolutions between images, else two linear layers."""
    delay: PositiveInt = 2
    """Micro-batches after which a block hears of its target once the next one has its own: block l of L learns from what it was
    given delay · (L - l) micro-batches ago, which it keeps. From 2 on, neighbouring stages work at the same time."""
    head: Literal["auto", "linear", "mlp", "conv", "augmented"] = "linear"
    """What classifies a block's output; as of objective synthetic."""


class Own(Section):
    """An objective of the user's own."""

    model_config = ConfigDict(extra="allow")

    name: str


class Unknown(Section):
    """A name that no objective has, which is refused with those that there are."""

    model_config = ConfigDict(extra="allow")

    name: Literal["associated", "classifier", "contrastive", "deinfo", "forward_forward", "synthetic", "target_propagation"]


SECTIONS: dict[str, type[Section]] = {
    "associated": Associated,
    "classifier": Classifier,
    "contrastive": Contrastive,
    "deinfo": Deinfo,
    "forward_forward": ForwardForward,
    "synthetic": Synthetic,
    "target_propagation": TargetPropagation,
}


def _tag(section: Any) -> str:
    """Which section is meant: by its name, associated if it has none."""
    name = section.get("name", "associated") if isinstance(section, dict) else getattr(section, "name", "associated")
    if not isinstance(name, str):
        return "unknown"
    return "own" if ":" in name else name if name in SECTIONS else "unknown"


Objective = Annotated[
    Annotated[Associated, Tag("associated")]
    | Annotated[Classifier, Tag("classifier")]
    | Annotated[Contrastive, Tag("contrastive")]
    | Annotated[Deinfo, Tag("deinfo")]
    | Annotated[ForwardForward, Tag("forward_forward")]
    | Annotated[Synthetic, Tag("synthetic")]
    | Annotated[TargetPropagation, Tag("target_propagation")]
    | Annotated[Own, Tag("own")]
    | Annotated[Unknown, Tag("unknown")],
    Discriminator(_tag),
]
