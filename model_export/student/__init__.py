"""The student, distilled from the teacher's labels and traces."""
