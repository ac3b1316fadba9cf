"""The options of a run on its training: method, network, steps, optimiser."""

from typing import Literal

from gradsurgery.documents.document import Choices, option

BatchNorm = Literal["frozen", "per-domain", "pooled"]
Optimizer = Literal["adam", "adamw", "sgd"]
Average = Literal["none", "ema", "swad"]
Batches = Literal["multi", "single"]
Schedule = Literal["constant", "linear", "cosine"]
Augment = Literal["none", "flip", "crop", "domainbed", "randaugment", "trivialaugment"]


class TrainingOptions(Choices):
    """What is trained, and how."""

    method: str = option(
        "identity",
        "A name of `gradsurgery methods`, or objective+rule; either may be package.module:Name.",
        "agr-sum",
    )
    settings: dict[str, float | str] = option(
        "hyperparameter",
        "A hyperparameter of the method or the average, e.g. group-dro.eta=0.05; see "
        "`gradsurgery methods`.",
        {},
        free=True,
    )
    backbone: str = option(
        "condition",
        "A torchvision or timm classifier, small-cnn, small-mlp, or package.module:function.",
        "alexnet",
    )
    weights: str = option(
        "condition",
        "Initial weights: default (pretrained on ImageNet), none, or a file.",
        "default",
    )
    batch_norm: BatchNorm = option(
        "hyperparameter",
        "Batch normalisation: frozen (evaluation mode), per-domain (every domain by its own "
        "batch), or pooled (one forward pass over the batches of all domains, then a backward pass "
        "per domain). Default: frozen, with weights none per-domain.",
        "frozen",
    )
    seed: int = option(
        "identity", "Seed of everything random in the run.", 0, free=True, ge=0, le=2**63 - 1
    )
    iterations: int = option("hyperparameter", "Steps of the optimiser.", 1000, ge=1)
    batch_size: int = option("hyperparameter", "Images per source domain and step.", 128, ge=1)
    batches: Batches = option(
        "condition",
        "multi: one batch of every source domain. single: as many batches, all of one domain "
        "chosen at random at every step (the control of the paper's figure 4).",
        "multi",
    )
    log_conflict: int = option(
        "incidental",
        "Record every so many steps how the domains' gradients agree; 0 is never.",
        0,
        ge=0,
    )
    learning_rate: float = option(
        "hyperparameter", "Step size of the optimiser.", 1e-5, free=True, gt=0
    )
    weight_decay: float = option(
        "hyperparameter", "Weight decay of the optimiser.", 5e-5, free=True, ge=0
    )
    optimizer: Optimizer = option(
        "hyperparameter", "adam, adamw or sgd (with momentum 0.9).", "adam"
    )
    schedule: Schedule = option(
        "hyperparameter",
        "The learning rate over the steps: constant, or falling to 0 at the end, linear or cosine.",
        "constant",
        free=True,
    )
    warmup: int = option(
        "hyperparameter",
        "Steps over which the learning rate rises to its full value before that, linearly.",
        0,
        free=True,
        ge=0,
    )
    clip_norm: float | None = option(
        "hyperparameter",
        "Largest norm of the update that the method hands to the optimiser, all parameters "
        "together; a longer one is scaled down to it. Default: no limit.",
        None,
        gt=0,
    )
    label_smoothing: float = option(
        "hyperparameter",
        "Weight that the targets of training spread over all classes; validation and tests are "
        "without.",
        0.0,
        free=True,
        ge=0,
        lt=1,
    )
    augment: Augment = option(
        "hyperparameter",
        "Change training images at random: none, flip, crop (a random part, and flip), domainbed "
        "(that, with colours and grey), randaugment or trivialaugment.",
        "none",
    )
    freeze: str = option(
        "hyperparameter",
        "What is not trained: none, all-but-head, or layers by name or pattern, separated by "
        "commas, e.g. features.0,layer1.*.",
        "none",
        min_length=1,
    )
    freeze_steps: int = option(
        "hyperparameter",
        "For how many steps that is frozen, after which all is trained; 0 is for the whole run.",
        0,
        ge=0,
    )
    patience: int = option(
        "hyperparameter",
        "Stop after so many validations in a row without a higher validation accuracy; 0 is never.",
        0,
        ge=0,
    )
    average: Average = option(
        "hyperparameter",
        "Average of the weights over the steps: none, ema (the exponential average is validated, "
        "selected and tested), or swad (the best model is the mean over the valley of the "
        "validation loss).",
        "none",
    )
    validate_every: int = option(
        "hyperparameter",
        "Steps between validations. Each writes a checkpoint, unless writing them takes more than "
        "a tenth of the run's time.",
        20,
        ge=1,
    )
