"""Pictures of graphs: records of boxes and edges, DOT text, and rendering in a child process."""
