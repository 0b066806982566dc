"""What any long job needs: threads, progress, signals, memory, files, a device."""
