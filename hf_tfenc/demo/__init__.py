"""The page of `hf-tfenc demo`: what a trained model says of a text, and a look inside it."""
