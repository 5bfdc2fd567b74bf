"""Running the points of a sweep: on this machine (`local`), and the Hydra launcher that gets there (`launcher`)."""
