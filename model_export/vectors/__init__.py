"""Notes read as vectors: an encoder and the student that reads its vectors, trained from one text student."""
