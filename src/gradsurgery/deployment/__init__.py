"""A trained model in use: loaded again, predicting, evaluated elsewhere, exported."""

from gradsurgery.deployment.trained_model import Predictions, TrainedModel, load_model

__all__ = ["Predictions", "TrainedModel", "load_model"]
