"""Reading runs, and drawing them as pictures, as a page and in a terminal."""
