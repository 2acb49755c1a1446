"""Language models as policies: engines, samplers and tasks on text."""
