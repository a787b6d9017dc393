"""`python -m rectune`, which launchers of several processes start: `accelerate launch -m rectune train CONFIG`."""

from rectune.cli import main

if __name__ == "__main__":
    main()
