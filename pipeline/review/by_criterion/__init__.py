"""What people say of the single criteria of a rubric, where a judge goes by one."""
