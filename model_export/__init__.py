"""The trainer half of Notegrade: it makes the checkpoint folders that the service serves."""
