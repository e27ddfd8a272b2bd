"""Files and tensors: pictures, sound, report pages."""
