"""What leaves the house: the card, the pictures, the upload, weights of other families."""
