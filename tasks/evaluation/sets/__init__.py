"""Sets of samples: folders, archives, arrays, data sets."""
