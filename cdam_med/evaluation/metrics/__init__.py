"""What a map is judged by: arrays in, one value an image out."""
