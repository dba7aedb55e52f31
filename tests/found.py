"""What the tests look for in a network."""
from aa_models.layers import AugmentedConv2d


def augmented(model):
    """The augmented convolutions by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AugmentedConv2d)}
