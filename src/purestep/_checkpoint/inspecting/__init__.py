"""Views of stored arrays for `inspect`: of any kind of file, of a run and of a directory of files."""
