"""Methods other than CDAM's own family, one file a method; `..registry` lists them."""
