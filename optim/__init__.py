"""Learning-rate schedules, batch ramps, the plan that joins them, and optimizers."""
