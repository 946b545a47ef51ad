"""``python -m facelock.miniature``: render training sets, train the bundled models, export and evaluate them."""

from facelock.miniature.train import main

if __name__ == "__main__":
    main()
