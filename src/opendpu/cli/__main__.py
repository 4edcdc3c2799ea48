from opendpu.cli.main import main

main()
