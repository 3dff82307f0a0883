"""Zero-shot evaluation of class embeddings on frozen image features."""
