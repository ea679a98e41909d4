"""GQA's official scores of any system's predictions: files in, sums that merge, the official numbers out."""
