"""One check per exercise, by the exercise's name; labkit.course.check calls them."""
