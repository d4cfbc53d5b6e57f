"""What hardware must compute: references, inputs, tolerances."""
