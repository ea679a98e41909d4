"""Other machines: reached by ssh, asked, watched."""
