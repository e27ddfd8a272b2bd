"""What a model is given besides tokens: requests, classes, tasks of MAGVIT."""
