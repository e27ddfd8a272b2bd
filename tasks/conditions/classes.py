"""Names of the 1000 ImageNet classes, in the order of their ids, from torchvision's description of its own weights."""

from functools import cache


@cache
def imagenet_classes() -> tuple[str, ...]:
    """One short English name a class; nothing is downloaded.

    The order is that of ImageNet-1k's sorted WordNet ids, which the published models were trained with. A name may
    occur twice in some versions of torchvision (the bird and the machine are both cranes): labels are then given by
    number.
    """
    from torchvision.models import ResNet50_Weights

    return tuple(str(name) for name in ResNet50_Weights.IMAGENET1K_V2.meta["categories"])
