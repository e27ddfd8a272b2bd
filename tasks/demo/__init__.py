"""From nothing to a report page, one file a modality."""
