"""Model shapes, the model, and the loop that trains one point: `python -m train <run folder>`."""
