"""Official scores of tasks other than GQA: pure arithmetic, the files that it needs, and one clear line per fault."""
