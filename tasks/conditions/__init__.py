"""What a model is given besides tokens: classes, MAGVIT's tasks."""
