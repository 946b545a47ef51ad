"""Video in and out: hostile files read in a process of their own, segments written by ffmpeg, joined without loss."""
