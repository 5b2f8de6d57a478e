"""Base models and transformers folders: loading, saving, quantizing and scoring with them."""
