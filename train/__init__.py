"""Programs that run from the checkout: `python -m train.evaluate`."""
