"""Networks: text classifiers, image classifiers, causal language models."""
