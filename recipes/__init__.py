"""Scripts to copy and edit: `vitseg recipe` lists them, installed they are `vitseg_zoo.recipes`."""
