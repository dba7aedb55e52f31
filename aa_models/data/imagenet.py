"""What a cfg says of ImageNet: the names of its thousand classes, and what they mean."""
from timm.data import ImageNetInfo

_INFO = ImageNetInfo()  # knows all nouns of WordNet, not those of ImageNet alone; reading its list takes 0.03 s
describe = _INFO.label_name_to_description

IMAGENET_LABELS = {synset: describe(synset) for synset in _INFO.label_names()}  # in the order of a network's outputs
