"""From labelled texts to a model artifact: reading rows, training, calibration, evaluation."""
