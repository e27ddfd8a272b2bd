"""Networks whose features are compared, and statistics of real data."""

from maskgen.tasks.evaluation.features.classifier import ClassifierFeatures
from maskgen.tasks.evaluation.features.clip import ClipFeatures
from maskgen.tasks.evaluation.features.i3d import I3DFeatures
from maskgen.tasks.evaluation.features.inception import InceptionFeatures

__all__ = ["ClassifierFeatures", "ClipFeatures", "I3DFeatures", "InceptionFeatures"]
