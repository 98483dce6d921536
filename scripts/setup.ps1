# Set fluxtune up on Windows: finds a Python and lets setup.py do the rest. For PowerShell 5.1 and 7.
# --environment DIR, --torch BUILD and --dry-run are explained by --help.

$check = 'import sys; sys.exit(sys.version_info < (3, 11) or sys.maxsize < 2**32)'
$setup = Join-Path $PSScriptRoot 'setup.py'

foreach ($candidate in 'py -3', 'python', 'python3') {
    $words = @(-split $candidate)
    $program = $words[0]
    $options = @($words | Select-Object -Skip 1)
    if (-not (Get-Command $program -CommandType Application -ErrorAction SilentlyContinue)) { continue }
    # The "python" that Windows brings only opens the store; it fails here.
    & $program @options -c $check 2>&1 | Out-Null
    if ($LASTEXITCODE -eq 0) {
        & $program @options $setup @args
        exit $LASTEXITCODE
    }
}

[Console]::Error.WriteLine("error: no Python 3.11 or newer of 64 bits was found`n`nhint: winget install Python.Python.3.12")
exit 2
