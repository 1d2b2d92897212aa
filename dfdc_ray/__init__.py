"""dfdc_ray: from the Deepfake Detection Challenge corpus to a deepfake detector, on a laptop or a Ray cluster."""

__version__ = "0.1.0"
