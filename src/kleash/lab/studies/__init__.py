"""The lab's studies, a package each: `study` says what is made, `findings` what it shows. `catalogue` lists them."""
