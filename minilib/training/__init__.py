"""One training loop, and for each modality its data on the device, its loss and prediction."""
